"""What measures Foreword: other methods beside prefixes, costs, experiments.

Of the package only the command line imports it.
"""
