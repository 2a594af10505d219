;; Row 6: drops a handle that was never given to it.
(component
  (import "wasi:http/types@0.2.12" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $out))
  (core func $drop-request (canon resource.drop $request))
  (core func $drop-out (canon resource.drop $out))
  (core module $m
    (import "r" "drop-request" (func $drop-request (param i32)))
    (import "r" "drop-out" (func $drop-out (param i32)))
    (func (export "handle") (param $request i32) (param $out i32)
      (call $drop-request (i32.const 7777))))
  (core instance $i (instantiate $m (with "r" (instance
    (export "drop-request" (func $drop-request)) (export "drop-out" (func $drop-out))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.12" (instance $handler)))
