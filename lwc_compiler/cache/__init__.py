"""What is kept between runs: the folder, finished results and what they depend on, locks."""
