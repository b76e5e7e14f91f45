"""The web page: requests, the line in which they wait and are batched, the model that serves them, and the page itself."""
