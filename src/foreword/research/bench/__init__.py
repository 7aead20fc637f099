"""Measuring: what Foreword's work costs, beside a peer and beside what the machine can do."""
