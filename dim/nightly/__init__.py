"""The nightly evaluation: extract what is new, index, measure, compare with the last accepted night, keep a history."""
