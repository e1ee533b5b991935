"""The page and the HTTP API: `energylens serve` (extra ``serve``)."""
