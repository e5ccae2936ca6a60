def show(r): pass
