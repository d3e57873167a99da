"""What flags say of engines, without a package of theirs: a help page needs none."""

ENGINES = ("auto", "exact", "faiss", "ivf", "milvus")
IVF_FROM = 100_000  # images; below, an exact search takes a moment
