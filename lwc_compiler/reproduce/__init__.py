"""`lwc reproduce`: the networks and tables of Han et al. 2015, made again and put beside the paper's figures."""
