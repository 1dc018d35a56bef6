"""Measure pynet beside what people would pick instead, in one run, interleaved."""
