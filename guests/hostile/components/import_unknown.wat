;; Row 18: imports an interface that nobody offers.
(component (import "acme:unknown/thing@1.0.0" (instance)))
