;; Row 18: imports a version that is not offered.
(component (import "wasi:http/types@0.9.0" (instance)))
