def rewrite(): pass
