"""Groups of similar texts: found by embeddings, named by a model, compared with labels where there are any."""
