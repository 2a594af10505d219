;; Row 18: is routed to, and exports no handler.
(component)
