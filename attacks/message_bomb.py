"""Long text where little was expected: an error that quotes it whole fills terminals, logs and answers."""

from forge import described, listed, show

long = "x" * 60_000
show(described(version=long))
show(described(positions=long))
show(described(labels=long))
show(described(**{long: 1}))
show(described(geometry={long: {}}))
show(listed(decoder_key={"dtype": long}))
