"""The lecture, claim by claim: ``pytest tests/lecture --collect-only -q`` lists it."""
