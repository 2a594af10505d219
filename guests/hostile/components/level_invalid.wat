;; Row 8: a value that its type does not have.
(component
  (import "wasi:http/types@0.2.12" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $out))
  (import "wasi:logging/logging@0.1.0-draft" (instance $logging
    (type $levels (enum "trace" "debug" "info" "warn" "error" "critical"))
    (export "level" (type $level (eq $levels)))
    (export "log" (func (param "level" $level) (param "context" string) (param "message" string)))))
  (core module $mem (memory (export "memory") 1))
  (core instance $mem (instantiate $mem))
  (core func $log (canon lower (func $logging "log") (memory (core memory $mem "memory"))))
  (core module $m (import "r" "log" (func $log (param i32 i32 i32 i32 i32)))
    (func (export "handle") (param i32 i32) (call $log (i32.const 99) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))))
  (core instance $i (instantiate $m (with "r" (instance (export "log" (func $log))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.12" (instance $handler)))
