"""Models to take away: exported directories and bundles, and new scans that they label."""
