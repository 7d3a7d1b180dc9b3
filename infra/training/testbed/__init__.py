"""What tests and the starter's recipe need: a throw-away database with a shop in it."""
