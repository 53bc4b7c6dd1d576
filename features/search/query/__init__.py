"""How a query is answered: parsed, composed as one SQL statement, run, and highlighted."""
