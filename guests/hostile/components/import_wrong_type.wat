;; Row 18: imports an interface as something else than it is.
(component
  (import "wasi:random/random@0.2.12" (instance $random
    (export "get-random-bytes" (func (param "path" string) (result (list string)))))))
