"""Makes the kernel of one node equal to what the calculation says (`desired`).

Pure parts: `compiler` says what the table of nftables must hold (with `base`, `policies`, `rules` and `sets`), `table`
which transaction gets it there. `nft` runs it.
"""
