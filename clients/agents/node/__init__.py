"""The agent of a node, in the role of Calico's Felix.

Two parts, strictly apart: the calculation turns the feed into what this node must have (`desired`), without I/O. The
data plane makes the kernel equal to it.
"""
