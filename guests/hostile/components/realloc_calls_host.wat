;; Row 5: the allocator calls the host again while the host is in the middle of handing it a result.
(component
  (import "wasi:http/types@0.2.12" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $out))
  (import "wasi:random/random@0.2.12" (instance $random
    (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))
  (core module $mem
    (table (export "table") 1 funcref)
    (memory (export "memory") 1)
    (type $get (func (param i64 i32)))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (call_indirect (type $get) (i64.const 8) (i32.const 64) (i32.const 0))
      (i32.const 1024)))
  (core instance $mem (instantiate $mem))
  (core func $get (canon lower (func $random "get-random-bytes")
    (memory (core memory $mem "memory")) (realloc (core func $mem "realloc"))))
  (alias core export $mem "table" (core table $t))
  (core module $m
    (import "r" "get" (func $get (param i64 i32)))
    (import "r" "table" (table 1 funcref))
    (elem (i32.const 0) func $get)
    (func (export "handle") (param i32 i32) (call $get (i64.const 8) (i32.const 0))))
  (core instance $i (instantiate $m (with "r" (instance
    (export "get" (func $get)) (export "table" (table $t))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.12" (instance $handler)))
