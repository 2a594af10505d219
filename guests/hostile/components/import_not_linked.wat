;; Row 19: imports a contract that it has no link for.
(component (import "wasi:keyvalue/store@0.2.0-draft" (instance)))
