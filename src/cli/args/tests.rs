use super::*;

fn choices(set: impl FnOnce(&mut Combination)) -> Combination {
    let (layout, kernel, dtype) = ("thd".into(), "flash".into(), "f32".into());
    let mut choices = Combination { layout, kernel, dtype, ..Combination::default() };
    set(&mut choices);
    choices
}

#[test]
fn defaults_follow_the_number_of_ranks() {
    let strategy_and_cp = |strategy: Option<&str>, cp: Option<&str>| {
        let choices = choices(|choices| {
            choices.strategy = strategy.map(str::to_string);
            choices.cp = cp.map(str::to_string);
        });
        choices
            .settings()
            .map(|settings| (settings.choice.strategy, settings.choice.degree))
            .map_err(|error| error.to_string())
    };
    assert_eq!(strategy_and_cp(None, None), Ok(("single".to_string(), 1)));
    assert_eq!(strategy_and_cp(None, Some("1")), Ok(("single".to_string(), 1)));
    assert_eq!(strategy_and_cp(None, Some("3")), Ok(("ring".to_string(), 3)));
    assert_eq!(strategy_and_cp(Some("ring"), None), Ok(("ring".to_string(), 2)));
    assert_eq!(strategy_and_cp(Some("p2p"), Some("1")), Ok(("ring".to_string(), 1)));
    assert_eq!(strategy_and_cp(Some("all_gather"), Some("4")), Ok(("all-gather".to_string(), 4)));
    assert!(strategy_and_cp(Some("single"), Some("2")).unwrap_err().contains("--cp 1"));
}

#[test]
fn the_order_is_the_strategys_first_or_one_that_it_has() {
    let order = |strategy: &str, order: Option<&str>| {
        let choices = choices(|choices| {
            choices.strategy = Some(strategy.to_string());
            choices.order = order.map(str::to_string);
        });
        choices.settings().map(|settings| settings.choice.order).map_err(|error| error.to_string())
    };
    assert_eq!(order("single", None), Ok("natural".to_string()));
    assert_eq!(order("ring", None), Ok("zigzag".to_string()));
    assert_eq!(order("ring", Some("striped")), Ok("striped".to_string()));
    let error = order("single", Some("striped")).unwrap_err();
    assert!(error.contains("striped") && error.contains("single") && error.contains("natural"), "{error}");
}

#[test]
fn lists_of_ranks() {
    assert_eq!(rank_list("1,2, 3,4").unwrap(), [1, 2, 3, 4]);
    for wrong in ["", "1,,2", "1,0", "-1", "2.5", "2x2", "two"] {
        let error = rank_list(wrong).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("--cp"), "{wrong}: {error}");
    }
}
