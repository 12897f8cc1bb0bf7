"""What a run is told: options, whole recipes, their files, their schema, and how one is carried out."""
