"""From a study file and a dataset's fingerprint to `plan.json`, the one contract that later stages read."""
