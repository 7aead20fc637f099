"""The OpenAI API over HTTP: middleware, routes, and the JSON of their requests and answers."""
