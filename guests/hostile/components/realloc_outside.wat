;; Row 7: the allocator answers with an address outside of the memory.
(component
  (import "wasi:http/types@0.2.12" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $out))
  (import "wasi:random/random@0.2.12" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core module $mem
    (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0x7ffffff0)))
  (core instance $mem (instantiate $mem))
  (core func $get (canon lower (func $random "get-random-bytes")
    (memory (core memory $mem "memory")) (realloc (core func $mem "realloc"))))
  (core module $m (import "r" "get" (func $get (param i64 i32)))
    (func (export "handle") (param i32 i32) (call $get (i64.const 8) (i32.const 0))))
  (core instance $i (instantiate $m (with "r" (instance (export "get" (func $get))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.12" (instance $handler)))
