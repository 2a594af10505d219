//! What agents rely on, point by point, and which test sees to it. Those of a real agent run where `NOMAD_BIN` names one
//! (`a_real_agent_runs_finds_and_ends_a_task`, `a_real_agent_runs_a_batch_job`); all others run against the fake host of [`crate::agent`].
//!
//! | # | Point | Seen by |
//! |---|---|---|
//! | 1 | no cookie: exit 1 and a sentence | `a_person_who_starts_it_is_told_what_it_is` |
//! | 2 | handshake on unix and tcp, one line, bound before it is printed | `it_speaks_on_both_networks_and_ends_when_told` |
//! | 3 | controller's Shutdown: ends within 2 s, tasks live on | `it_speaks_on_both_networks_and_ends_when_told`, `a_task_outlives_plugins_and_agents` |
//! | 4 | SIGINT is not for it | `an_interrupt_is_the_agents` |
//! | 5 | auto-mTLS where a certificate is given | `mutual_tls_where_the_host_asks_for_it` |
//! | 6 | multiplexing variable | `the_seventh_field_is_for_those_who_ask` |
//! | 7 | name, type, versions | every test: `Agent::start` |
//! | 8 | schemas, absent fields, numbers, maps | `what_agents_send_is_understood`, `every_example_is_understood`, `a_job_that_cannot_run_is_told_why_and_not_tried_again` |
//! | 9 | SetConfig twice, empty NomadConfig, what is wrong with one | `an_agent_configuration_that_cannot_be_is_refused` |
//! | 10 | first fingerprint at once, missing program, programs that come and go, layers of isolation | `a_missing_program_is_said_in_the_fingerprint`, `the_fingerprint_says_which_layers_there_are` |
//! | 11 | start: well, never again, later again | `a_component_serves_until_it_is_stopped_and_leaves_nothing`, `a_job_that_cannot_run_is_told_why_and_not_tried_again`, `what_may_pass_is_tried_again`, `a_start_that_is_asked_for_again_starts_no_second_copy`, `a_start_that_nobody_has_heard_of_is_the_only_one` |
//! | 12 | one id, one task | `an_id_is_started_once` |
//! | 13 | wait: several at once, given up, afterwards, unknown | `a_component_serves_until_it_is_stopped_and_leaves_nothing`, `a_program_ends_with_its_exit_code` |
//! | 14 | stop: drain, kill, exited, unknown, signal | `calls_in_flight_have_until_the_deadline`, `a_task_that_does_not_answer_is_killed_with_all_it_started`, `a_program_is_ended` |
//! | 15 | destroy: with and without force, unknown; nothing is left | `force_destroys_what_runs`, `a_component_serves_until_it_is_stopped_and_leaves_nothing`, `what_could_not_be_recovered_is_destroyed_without_a_trace` |
//! | 16 | recover: alive, exited, gone, twice, other version, without its configuration | `a_task_outlives_plugins_and_agents`, `an_end_that_nobody_saw_is_reported`, `what_is_gone_is_not_recovered`, `an_exit_code_that_nobody_saw_is_reported`, `a_program_that_ended_unheard_of_is_not_run_again` |
//! | 17 | plugin and agent are killed while tasks run | `a_task_outlives_plugins_and_agents`, `a_host_that_dies_comes_back` |
//! | 18 | stats: fields, interval, cancel | `a_component_serves_until_it_is_stopped_and_leaves_nothing` |
//! | 19 | events reach their task | `force_destroys_what_runs`, `a_program_ends_with_its_exit_code` |
//! | 20 | signals: not offered, and said so | `what_is_not_supported_is_said` |
//! | 21 | exec: not offered, and said so | `what_is_not_supported_is_said` |
//! | 22 | logs: FIFOs, `/dev/null`, slow readers, another reader | `lines_reach_the_fifos`, `a_program_may_take_long_and_write_much` |
//! | 23 | environment and directories as granted | `a_program_runs_once_with_what_it_was_granted`, `folders_are_there_as_granted`, `links_that_are_put_in_its_way_lead_a_task_nowhere`, `a_task_runs_as_the_user_of_its_job` |
//! | 24 | template: restart is stop and start; signal and script are not offered | `a_link_reaches_its_server_with_a_secret_of_the_task`, `what_is_not_supported_is_said` |
//! | 25 | ports, network namespace; DNS is refused | `a_task_lives_in_the_network_of_its_group`, `ports_are_those_of_the_network_the_task_is_in`, `a_job_that_cannot_run_is_told_why_and_not_tried_again` |
//! | 26 | memory and CPU of the `resources` block | `a_task_that_runs_out_of_memory_is_said_to_have`, `a_program_that_eats_too_much_is_killed`, `each_version_has_its_files`, `what_was_killed_before_this_run_is_not_counted` |
//! | 27 | volumes, read-only and not | `folders_are_there_as_granted`, `a_task_with_folders_has_every_layer` |
//! | 28 | 1,000 lives without a trace, 200 tasks at once | `many_lives_leave_no_trace`, `many_tasks_at_once` |
//! | 29 | fields of older and newer agents | `fields_of_other_versions_are_skipped` |
//! | 30 | components of artifacts and registries | `a_component_comes_from_a_registry_by_its_digest`, `a_real_agent_runs_finds_and_ends_a_task` |
//! | 31 | restart, batch: what a real agent makes of them | `a_real_agent_runs_finds_and_ends_a_task`, `a_real_agent_runs_a_batch_job` |

/// Every test that the table names is there.
#[test]
fn the_table_names_tests_that_there_are() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in ["tests/all", "src/plugin", "src/wasm", "../cli/src/task"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            sources.push_str(&std::fs::read_to_string(entry.unwrap().path()).unwrap());
        }
    }
    let rows: Vec<&str> = include_str!("points.rs").lines().filter(|line| line.starts_with("//! | ")).skip(1).collect();
    assert_eq!(rows.len(), 31);
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<&str> = row.trim_start_matches("//! ").split(" | ").collect();
        assert_eq!(cells[0].trim_start_matches("| "), (index + 1).to_string(), "{row}");
        let names = cells[2].split('`').skip(1).step_by(2).filter(|name| !name.contains(':'));
        for name in names {
            assert!(sources.contains(&format!("fn {name}(")), "no test `{name}`: {row}");
        }
    }
}
