"""What is done with trained adapters: a table of them, a merged model, publication."""
