//! What agents rely on, point by point, and which test sees to it: with the fake host of [`crate::agent`], and, where `NOMAD_BIN`
//! names one and the point can be seen there, with a real agent ([`crate::real`]).
//!
//! | # | Point | With the fake host | With a real agent |
//! |---|---|---|---|
//! | 1 | no cookie: exit 1 and a sentence | `a_person_who_starts_it_is_told_what_it_is` | –: agents give the cookie |
//! | 2 | handshake on unix and tcp, one line, bound before it is printed | `it_listens_before_it_says_so`, `it_speaks_on_both_networks_and_ends_when_told`, `no_agent_waits_for_a_plugin` | `a_real_agent_serves_what_its_job_says` |
//! | 3 | controller's Shutdown: ends within 2 s, tasks live on | `it_speaks_on_both_networks_and_ends_when_told`, `a_task_outlives_plugins_and_agents`, `no_agent_waits_for_a_plugin`, `whoever_waits_when_a_plugin_ends_is_told_that_the_task_goes_on` | `a_real_agent_finds_its_tasks_again` |
//! | 4 | SIGINT is not for it | `an_interrupt_is_the_agents` | –: no terminal interrupts both |
//! | 5 | auto-mTLS where a certificate is given | `mutual_tls_where_the_host_asks_for_it` | –: no agent asks for it |
//! | 6 | multiplexing variable | `the_seventh_field_is_for_those_who_ask` | –: no agent asks for it |
//! | 7 | name, type, versions | every test: `Agent::start` | `a_real_agent_knows_what_a_machine_offers` |
//! | 8 | schemas, absent fields, numbers, maps | `what_agents_send_is_understood`, `numbers_texts_and_blocks_arrive_as_they_were_written`, `every_example_is_understood`, `a_job_that_cannot_run_is_told_why_and_not_tried_again` | `a_real_agent_serves_what_its_job_says`, `a_real_agent_says_why_a_task_does_not_run`, `a_real_agent_takes_every_example`, `a_real_agent_takes_the_sample_for_a_driver` |
//! | 9 | SetConfig twice, empty NomadConfig, what is wrong with one | `an_agent_configuration_that_cannot_be_is_refused` | `a_real_agent_refuses_a_configuration_that_cannot_be` |
//! | 10 | first fingerprint at once, missing program, programs that come and go, layers of isolation | `a_missing_program_is_said_in_the_fingerprint`, `an_agent_is_not_kept_waiting_for_the_first_fingerprint`, `the_fingerprint_says_which_layers_there_are`, `no_agent_waits_for_a_plugin`, `both_programs_in_one_folder_are_all_it_needs`, `a_program_that_comes_and_goes_is_said_in_the_fingerprint`, `a_program_of_another_release_is_said_in_the_fingerprint`, `a_client_that_can_bound_no_task_is_not_healthy` | `a_real_agent_knows_what_a_machine_offers` |
//! | 11 | start: well, never again, later again | `a_component_serves_until_it_is_stopped_and_leaves_nothing`, `a_job_that_cannot_run_is_told_why_and_not_tried_again`, `what_may_pass_is_tried_again`, `a_folder_that_the_machine_has_no_room_for_is_not_the_jobs_fault`, `credentials_come_from_the_helper_that_the_configuration_names`, `a_start_that_is_asked_for_again_starts_no_second_copy`, `a_start_that_nobody_has_heard_of_is_the_only_one`, `a_layer_that_is_refused_for_a_moment_is_waited_for`, `a_start_that_the_agent_never_heard_of_ends_with_the_next`, `a_start_that_nobody_hears_of_and_none_follows_ends`, `a_start_that_waits_when_its_agent_is_killed_gives_way_to_the_next`, `bounds_that_cannot_be_set_now_are_tried_again`, `users_that_cannot_be_read_for_the_moment_are_no_fault_of_the_job`, `what_the_operator_revoked_does_not_start` | `a_real_agent_says_why_a_task_does_not_run`, `a_real_agent_runs_only_what_its_operator_trusts`, `a_real_agent_runs_programs_again_and_on_demand` |
//! | 12 | one id, one task | `an_id_is_started_once`, `an_id_that_is_asked_for_twice_while_it_starts_is_one_task`, `an_id_that_several_ask_for_at_once_is_one_task`, `a_start_whose_answer_was_lost_is_answered_again` | –: no agent asks twice |
//! | 13 | wait: several at once, given up, afterwards, unknown | `a_component_serves_until_it_is_stopped_and_leaves_nothing`, `a_program_ends_with_its_exit_code`, `the_signal_that_ended_a_task_is_told`, `whoever_waits_when_a_plugin_ends_is_told_that_the_task_goes_on` | `a_real_agent_is_told_how_programs_end` |
//! | 14 | stop: drain, kill, exited, unknown, signal | `calls_in_flight_have_until_the_deadline`, `a_task_that_does_not_answer_is_killed_with_all_it_started`, `a_program_is_ended`, `a_kill_signal_of_sigkill_ends_a_task_at_once`, `a_task_without_its_socket_is_stopped_and_not_killed`, `a_start_can_be_stopped` | `a_real_agent_serves_what_its_job_says`, `a_real_agent_is_told_how_programs_end` |
//! | 15 | destroy: with and without force, unknown; nothing is left | `force_destroys_what_runs`, `what_cannot_be_ended_is_not_forgotten`, `a_process_that_the_kernel_gives_no_handle_of_is_ended_with_all_it_started`, `a_component_serves_until_it_is_stopped_and_leaves_nothing`, `what_could_not_be_recovered_is_destroyed_without_a_trace` | `a_real_agent_finds_its_tasks_again` |
//! | 16 | recover: alive, exited, gone, twice, other version, another boot, without its configuration | `a_task_outlives_plugins_and_agents`, `an_end_that_nobody_saw_is_reported`, `a_task_of_another_boot_has_ended_and_its_number_is_not_its_own`, `what_is_gone_is_not_recovered`, `an_exit_code_that_nobody_saw_is_reported`, `a_program_that_ended_unheard_of_is_not_run_again`, `a_task_whose_files_were_removed_is_found_again`, `a_task_that_cannot_be_recovered_is_destroyed_by_what_is_left_of_it`, `an_end_is_known_without_what_was_to_be_run`, `an_end_that_cannot_be_read_for_the_moment_is_waited_for`, `what_cannot_be_read_is_not_taken_for_nothing`, `a_process_is_known_without_the_rest`, `what_cannot_be_looked_at_may_run`, `a_start_that_the_agent_never_heard_of_ends_with_the_next`, `what_cannot_be_looked_at_has_not_ended` | `a_real_agent_finds_its_tasks_again` |
//! | 17 | plugin and agent are killed while tasks run | `a_task_outlives_plugins_and_agents`, `a_host_that_dies_comes_back`, `a_task_whose_host_cannot_be_kept_up_ends`, `a_task_whose_host_hangs_in_its_start_ends`, `a_task_whose_host_dies_again_and_again_ends`, `a_program_whose_host_dies_has_failed`, `a_start_that_the_agent_never_heard_of_ends_with_the_next`, `what_the_agent_asked_for_and_what_is_another_agents_stays`, `what_no_agent_waits_for_ends_and_what_one_knows_goes_on` | `a_real_agent_finds_its_tasks_again` |
//! | 18 | stats: fields, interval, cancel | `a_component_serves_until_it_is_stopped_and_leaves_nothing`, `what_a_task_uses_is_told`, `what_a_task_uses_is_told_as_often_as_it_was_asked_for` | `a_real_agent_serves_what_its_job_says` |
//! | 19 | events reach their task | `force_destroys_what_runs`, `a_program_ends_with_its_exit_code` | `a_real_agent_serves_what_its_job_says`, `a_real_agent_is_told_how_programs_end` |
//! | 20 | signals: not offered, and said so | `what_is_not_supported_is_said` | `a_real_agent_serves_what_its_job_says` |
//! | 21 | exec: not offered, and said so | `what_is_not_supported_is_said` | `a_real_agent_serves_what_its_job_says` |
//! | 22 | logs: FIFOs, `/dev/null`, slow readers, another reader, one that is killed | `lines_reach_the_fifos`, `a_collector_that_is_killed_costs_a_service_nothing`, `what_a_collector_left_in_the_pipe_is_the_next_one_s`, `what_a_reader_left_in_its_pipe_is_the_next_one_s`, `a_collector_that_is_killed_does_not_hold_up_a_program_for_ever`, `bytes_that_nobody_will_read_hold_up_nobody`, `an_output_is_open_before_anything_is_written`, `a_program_may_take_long_and_write_much` | `a_real_agent_serves_what_its_job_says`, `a_real_agent_is_told_how_programs_end`, `a_real_agent_s_collector_of_logs_may_be_killed` |
//! | 23 | environment and directories as granted | `a_program_runs_once_with_what_it_was_granted`, `a_service_has_the_environment_that_its_job_grants`, `folders_are_there_as_granted`, `links_that_are_put_in_its_way_lead_a_task_nowhere`, `a_task_runs_as_the_user_of_its_job`, `nothing_that_a_neighbour_prepares_is_taken_for_the_driver_s` | `a_real_agent_serves_what_its_job_says`, `a_real_agent_s_folders_and_volumes_are_there_as_granted` |
//! | 24 | template: restart is stop and start; signal and script are not offered | `a_link_reaches_its_server_with_a_secret_of_the_task`, `what_is_not_supported_is_said` | `a_real_agent_serves_what_its_job_says`, `a_real_agent_restarts_and_drains_tasks_that_keep_their_data`, `a_real_agent_s_folders_and_volumes_are_there_as_granted` |
//! | 25 | ports, network namespace, DNS of the group | `a_task_lives_in_the_network_of_its_group`, `ports_are_those_of_the_network_the_task_is_in`, `a_job_that_cannot_run_is_told_why_and_not_tried_again`, `a_task_reaches_what_is_placed_beside_it_and_no_other_port_of_its_client`, `a_service_is_reached_on_whichever_client_nomad_placed_it`, `a_load_balancer_holds_as_many_connections_as_it_likes`, `a_sidecar_in_the_network_of_the_group_is_reached_by_its_links`, `what_the_agent_placed_beside_a_task_is_granted_port_by_port`, `what_a_job_names_in_its_own_network_is_granted_port_by_port` | `a_real_agent_s_network_is_where_a_task_lives`, `a_real_agent_s_task_reaches_the_redis_beside_it` |
//! | 26 | memory and CPU of the `resources` block | `a_task_that_runs_out_of_memory_is_said_to_have`, `a_program_that_eats_too_much_is_killed`, `a_task_has_its_share_of_the_processor_and_its_cores`, `a_task_is_bounded_by_the_group_that_the_agent_made_for_it`, `each_version_has_its_files`, `both_kinds_of_groups_of_version_2_get_their_bounds`, `what_was_killed_before_this_run_is_not_counted`, `the_whole_task_has_the_share_of_its_job`, `a_service_has_the_limits_of_its_job`, `a_program_has_the_limits_that_its_job_names`, `a_job_has_no_more_than_the_ceilings_of_its_client`, `a_task_keeps_no_more_than_its_client_lets_it` | `a_real_agent_is_told_how_programs_end` |
//! | 27 | volumes, read-only and not | `folders_are_there_as_granted`, `a_task_with_folders_has_every_layer` | `a_real_agent_s_folders_and_volumes_are_there_as_granted` |
//! | 28 | 1,000 lives without a trace, 200 tasks at once | `many_lives_leave_no_trace`, `many_tasks_at_once`, `more_tasks_than_a_shell_has_files_are_started_and_found_again` | –: a cluster keeps what has ended |
//! | 29 | fields of older and newer agents | `a_task_of_an_old_agent_is_served`, `a_task_of_a_new_agent_is_served`, `an_old_agent_s_task_runs`, `a_new_agent_s_task_runs` | –: each agent is of one version |
//! | 30 | components of artifacts and registries | `a_component_comes_from_a_registry_by_its_digest`, `credentials_come_from_the_helper_that_the_configuration_names` | `a_real_agent_serves_what_its_job_says`, `a_real_agent_says_why_a_task_does_not_run`, `a_real_agent_is_taken_through_the_five_steps_of_the_page` |
//! | 31 | restart, batch: what a real agent makes of them | `a_start_that_is_asked_for_again_starts_no_second_copy` | `a_real_agent_restarts_and_drains_tasks_that_keep_their_data`, `a_real_agent_runs_programs_again_and_on_demand` |

/// Every test that the table names is there.
#[test]
fn the_table_names_tests_that_there_are() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in ["tests/all", "tests/all/real", "../plugin/src", "../plugin/tests/all", "src/wasm", "../cli/src/task"]
    {
        let files = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        for file in files.filter(|path| path.is_file()) {
            sources.push_str(&std::fs::read_to_string(file).unwrap());
        }
    }
    let rows: Vec<&str> = include_str!("points.rs").lines().filter(|line| line.starts_with("//! | ")).skip(1).collect();
    assert_eq!(rows.len(), 31);
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<&str> = row.trim_start_matches("//! ").split(" | ").collect();
        assert_eq!(cells[0].trim_start_matches("| "), (index + 1).to_string(), "{row}");
        let named =
            |cell: &str| cell.split('`').skip(1).step_by(2).any(|name| sources.contains(&format!("fn {name}(")));
        assert!(!named(cells[1]), "a test in the column of the point: {row}");
        let names = cells[2..].join(" ");
        let names = names.split('`').skip(1).step_by(2).filter(|name| !name.contains(':'));
        for name in names {
            assert!(sources.contains(&format!("fn {name}(")), "no test `{name}`: {row}");
        }
    }
}
