;; Row 18: imports a function that its interface does not have.
(component
  (import "wasi:random/random@0.2.12" (instance $random
    (export "get-secret-bytes" (func (result (list u8)))))))
