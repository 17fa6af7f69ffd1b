"""What a manifest says, as frozen settings. No torch here."""
