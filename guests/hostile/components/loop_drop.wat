;; Row 1: an endless loop in the destructor of a resource, which the host calls.
(component
  (import "wasi:http/types@0.2.12" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $out))
  (core module $d (func (export "end") (param i32) (loop $again (br $again))))
  (core instance $d (instantiate $d))
  (type $trap (resource (rep i32) (dtor (core func $d "end"))))
  (core func $new (canon resource.new $trap))
  (core func $drop (canon resource.drop $trap))
  (core module $m
    (import "r" "new" (func $new (param i32) (result i32)))
    (import "r" "drop" (func $drop (param i32)))
    (func (export "handle") (param i32 i32) (call $drop (call $new (i32.const 1)))))
  (core instance $i (instantiate $m (with "r" (instance (export "new" (func $new)) (export "drop" (func $drop))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.12" (instance $handler)))
