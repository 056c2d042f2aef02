"""`make bench`: each row of the numbers to reach, beside a bare loop in the same run. See docs/performance.md."""
