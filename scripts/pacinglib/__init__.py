"""The parts of `scripts/pacing-curve`: a store with a scripted capacity, a load, the judgement."""
