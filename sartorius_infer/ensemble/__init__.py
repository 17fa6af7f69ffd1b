"""Networks that vote: what `--weights` means, the two passes, fusion."""
