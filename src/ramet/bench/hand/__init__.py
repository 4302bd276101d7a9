"""What a person would do without Ramet: plain, synchronous, without a daemon or an inventory. The baselines."""
