"""`make bench`: the rows of numbers to reach, most of them compared with a bare loop. See docs/performance.md."""
