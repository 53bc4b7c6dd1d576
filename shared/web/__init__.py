"""HTTP: problem details, middleware, pages, conditional requests, rate limits."""
