"""Many runs: several seeds, a process for each."""
