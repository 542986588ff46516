"""The results: runs under docs/results/protocol.md, their rows in docs/data/results, and the pages made of them."""
