"""What strangers say: targets for a fuzzer, see `targets`, and what it found, under corpus/."""
