//! A user's own sign-in history (contract §2): what worked, and what somebody tried.

use super::{
    authenticate::Bearer,
    error::Unavailable,
    model::{LoginEvent, Page},
    pages::Shown,
    ports::{Audit as _, Ports},
};

/// The audit events that are a way in, or a try at one; `totp` and `recovery_code` are second steps.
pub const WAYS_IN: [&str; 5] = ["login", "verify_otp", "google", "totp", "recovery_code"];

/// The bearer's sign-ins, newest first.
///
/// # Errors
/// The database is away.
pub async fn login_events<P: Ports>(ports: &P, bearer: &Bearer, page: Page) -> Result<Shown<LoginEvent>, Unavailable> {
    let listed = ports.store().await?.login_events(bearer.user.id, &WAYS_IN, page).await?;
    Ok(Shown::new(listed, page, |event| (event.at, event.id)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::services::{
        login::{Login, login},
        memory::{ADDRESS, NUMBER, PASSWORD, World, caller, request},
        model::{Outcome, Place},
        pages::PageQuery,
        run::run,
    };

    const WRONG: &str = "orange-Lantern-41";

    fn attempt(world: &World, who: &str, password: &str) {
        let _ = run(login(world, &caller(), request::<Login>(json!({ "email_or_phone": who, "password": password }))));
        world.pass(Duration::from_secs(1));
    }

    fn listed(world: &World, query: serde_json::Value) -> Shown<LoginEvent> {
        // By hand, for a sign-in would be one more.
        let (session, user) = (world.sessions().remove(0), world.users().remove(0));
        let page = request::<PageQuery>(query).page().unwrap();
        run(login_events(world, &Bearer { user: user.into(), session: session.into() }, page)).unwrap()
    }

    #[test]
    fn what_worked_and_what_was_tried_is_listed_the_newest_first() {
        let world = World::with_ada();
        world.add("grace@example.org", None);
        attempt(&world, ADDRESS, PASSWORD);
        attempt(&world, NUMBER, WRONG);
        attempt(&world, "grace@example.org", PASSWORD);
        attempt(&world, "nobody@example.org", PASSWORD);
        attempt(&world, ADDRESS, PASSWORD);
        let shown = listed(&world, json!({}));
        assert_eq!((shown.count, shown.next), (3, None));
        let told: Vec<_> = shown.results.iter().map(|event| (event.outcome, event.reason.as_str())).collect();
        let failed = (Outcome::Failure, "invalid_credentials");
        assert_eq!(told, [(Outcome::Success, ""), failed, (Outcome::Success, "")]);
        assert!(shown.results.is_sorted_by(|newer, older| newer.at > older.at));
        let first = &shown.results[2];
        assert_eq!(first.session_id, Some(world.sessions()[0].id));
        assert_eq!((first.action.as_str(), first.ip.as_str()), ("login", "192.0.2.1"));
        assert_eq!((first.browser.as_str(), first.os.as_str()), ("Firefox", "Linux"));
        assert_eq!(first.place, Place { country: "Nigeria".into(), city: "Lagos".into() });
        assert_eq!(shown.results[1].session_id, None);
    }

    #[test]
    fn other_actions_are_no_ways_in() {
        let world = World::with_ada();
        attempt(&world, ADDRESS, PASSWORD);
        let bearer = world.bearer(&world.sign_in(world.users()[0].id).tokens);
        run(crate::services::sessions::revoke_others(&world, &caller(), &bearer)).unwrap();
        assert!(world.audited().iter().any(|(action, _)| *action == "sessions_revoke_others"));
        assert!(world.audited().iter().any(|(action, _)| *action == "create_user"));
        assert_eq!(listed(&world, json!({})).count, 2);
    }

    #[test]
    fn pages_follow_one_another() {
        let world = World::with_ada();
        for _ in 0..3 {
            attempt(&world, ADDRESS, PASSWORD);
        }
        let first = listed(&world, json!({ "limit": 2 }));
        assert_eq!((first.count, first.results.len()), (3, 2));
        let last = listed(&world, json!({ "limit": 2, "cursor": first.next.unwrap() }));
        assert_eq!((last.count, last.results.len(), last.next), (3, 1, None));
        assert!(last.results[0].at < first.results[1].at);
    }
}
