"""Benchmarks: time, memory and quality of Foreword's work, beside PEFT and the limits of the machine."""
