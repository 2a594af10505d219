;; Row 18: imports a function, which no link can answer.
(component (import "run" (func)))
