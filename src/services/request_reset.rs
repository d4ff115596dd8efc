//! Asks for a new password; the answer is the same whether the account exists or not (contract §2).

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    codes::{self, Purpose, SendTo, Stored},
    error::Unavailable,
    events::Event,
    fields::{FieldErrors, Text, nullable},
    identifier::one_of,
    model::{Caller, User},
    outbox,
    ports::{Bundle, Claiming, First, Ports},
    problem::Problem,
    register::stored_spelling,
    reset_flow,
};

/// `POST /password/reset-request/`
#[derive(Debug, Deserialize, Validate)]
pub struct RequestReset {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email_or_phone: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    phone: Option<Text>,
}

/// Why nothing was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RequestResetError {
    /// Fields are missing or wrong.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<RequestResetError> for Problem {
    fn from(error: RequestResetError) -> Self {
        match error {
            RequestResetError::Invalid(errors) => Self::invalid(errors),
            RequestResetError::Unavailable(error) => error.into(),
        }
    }
}

/// Whether this account's password may be reset: whoever waits for their first code, or was disabled,
/// gets nothing.
pub fn may_reset(user: &User) -> bool {
    user.is_verified && user.is_active
}

/// Sends a link or a code to the stored address or number of an account, and does nothing visible
/// otherwise.
///
/// # Errors
/// [`RequestResetError`].
pub async fn request_reset<P: Ports>(
    ports: &P,
    caller: &Caller,
    request: RequestReset,
) -> Result<(), RequestResetError> {
    let region = &ports.policy().default_region;
    let asked =
        one_of(request.email_or_phone, request.email, request.phone, region).map_err(RequestResetError::Invalid)?;
    let user = ports.user_of(&asked).await?;
    let to = user.as_ref().and_then(|user| stored_spelling(user, &asked)).unwrap_or(asked);
    let who = user.as_ref().map_or(SendTo::Identifier(&to), |user| SendTo::Account(user.id));
    let entitled = user.as_ref().filter(|user| may_reset(user));
    // Each case makes a link or code and writes an entry to the outbox: time must not tell them apart.
    let nobody = User::new(ports.keys().stand_in(&to.comparable()), String::new(), ports.now());
    let (letter, with) = reset_flow::letter(ports, entitled.unwrap_or(&nobody), &to);
    let (_, without) = reset_flow::letter(ports, &nobody, &to);
    let stored = Stored { always: Vec::new(), with, without };
    let claim = codes::claim_send(ports, &who, Purpose::PasswordReset, stored);
    let withheld = Event::CodeWithheld { user_id: user.as_ref().map_or(nobody.id, |user| user.id) };
    let withheld = outbox::event(ports, &withheld);

    let event = audit::event(ports, "password_reset_request", caller).with_identifier(ports, &to);
    let event = user.as_ref().map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    let (event, refused, entry) = match entitled {
        Some(_) => (event.clone(), event.refused("too_soon"), letter),
        None => {
            let event = event.refused("not_entitled");
            (event.clone(), event, withheld.clone())
        }
    };
    let granted = Bundle { first: First::Nothing, session: None, event: &event, entries: &[entry] };
    ports.claim_and_write(&Claiming { claim: &claim, granted, withheld: (&refused, &[withheld]) }).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::services::{
        letters::Recipient,
        memory::{ADDRESS, NUMBER, World, caller, request},
        run::run,
    };

    const MINUTE: Duration = Duration::from_secs(61);

    fn ask(world: &World, who: &str) -> Result<(), RequestResetError> {
        run(request_reset(world, &caller(), request(json!({ "email_or_phone": who }))))
    }

    fn is_good(world: &World, (uidb64, token): &(String, String)) -> bool {
        let user = world.users().into_iter().find(|user| Some(user.id) == reset_flow::read_uidb64(uidb64)).unwrap();
        run(reset_flow::check_token(world, &user, token)).unwrap().is_some()
    }

    #[test]
    fn an_address_gets_a_link_and_a_number_a_code() {
        let world = World::with_ada();
        ask(&world, " ADA@Example.org ").unwrap();
        let letter = world.letters().pop().unwrap();
        assert_eq!(letter.to, Recipient::Email(ADDRESS.into()), "the stored spelling");
        assert_eq!(letter.letter.kind(), "password_reset");
        let (uidb64, token) = world.link();
        assert_eq!(uidb64, reset_flow::uidb64(world.users()[0].id));
        assert!(token.len() >= 43, "256 bits");
        let crate::services::letters::Letter::PasswordReset { url, minutes } = letter.letter else { unreachable!() };
        assert_eq!(url, format!("https://id.example.org/password-reset-confirm/{uidb64}/{token}"));
        assert_eq!(minutes, 60);
        assert!(is_good(&world, &(uidb64, token)));

        world.pass(MINUTE);
        ask(&world, "0803 123 4567").unwrap();
        let letter = world.letters().pop().unwrap();
        assert_eq!((letter.to, letter.letter.kind()), (Recipient::Phone(NUMBER.into()), "password_reset_code"));
        assert_eq!(world.audited().last(), Some(&("password_reset_request", "")));
    }

    #[test]
    fn asking_costs_the_same_whoever_is_asked_for() {
        type Change = fn(&World);
        let cases: [(&str, Change, &str); 5] = [
            ("known", |_| (), ""),
            ("unknown", |world| world.change_user(|user| (user.email, user.phone) = (None, None)), "not_entitled"),
            ("unverified", |world| world.change_user(|user| user.is_verified = false), "not_entitled"),
            ("disabled", |world| world.change_user(|user| user.is_active = false), "not_entitled"),
            ("deleted", World::hide_user, "not_entitled"),
        ];
        for who in [ADDRESS, NUMBER] {
            // Of the first request, and of another too soon after it.
            let mut told: Vec<Vec<Vec<&str>>> = vec![Vec::new(); 2];
            for (name, change, reason) in cases {
                let world = World::with_ada();
                change(&world);
                let hashes = world.hashes();
                for (told, reason) in told.iter_mut().zip([reason, if reason.is_empty() { "too_soon" } else { reason }])
                {
                    let before = (world.entries(), world.audited().len());
                    world.calls();
                    assert!(ask(&world, who).is_ok());
                    told.push(world.calls());
                    assert_eq!((world.entries(), world.audited().len()), (before.0 + 1, before.1 + 1), "{name} {who}");
                    assert_eq!(world.audited().last(), Some(&("password_reset_request", reason)), "{name} {who}");
                }
                assert_eq!(world.hashes(), hashes, "{name} {who}");
                assert_eq!(world.letters().len(), usize::from(reason.is_empty()), "{name} {who}");
            }
            for told in told {
                assert!(told.iter().all(|calls| calls == &told[0]), "{who} {told:?}");
                assert!(told[0].contains(&"claim") && told[0].contains(&"transaction"), "{told:?}");
            }
        }
    }

    #[test]
    fn a_link_asked_for_too_soon_is_not_sent_and_the_first_one_stays_good() {
        let world = World::with_ada();
        ask(&world, ADDRESS).unwrap();
        let link = world.link();
        ask(&world, ADDRESS).unwrap();
        assert_eq!(world.letters().len(), 1);
        assert_eq!(world.audited().last(), Some(&("password_reset_request", "too_soon")));
        assert_eq!(world.events().last().unwrap(), "CodeWithheld");
        assert!(is_good(&world, &link));
    }

    #[test]
    fn a_new_link_voids_the_one_before() {
        let world = World::with_ada();
        ask(&world, ADDRESS).unwrap();
        let first = world.link();
        world.pass(MINUTE);
        ask(&world, ADDRESS).unwrap();
        let second = world.link();
        assert!(first.0 == second.0 && first.1 != second.1);
        assert!(!is_good(&world, &first));
        assert!(is_good(&world, &second));
    }

    #[test]
    fn sends_are_counted_by_purpose_and_the_days_over_all() {
        let world = World::with_ada();
        let account = SendTo::Account(world.users()[0].id);
        let may_register = || codes::may_send(&world, &account, Purpose::Registration);
        for _ in 0..10 {
            ask(&world, ADDRESS).unwrap();
            assert!(may_register(), "a link sent holds up no code of another purpose");
            world.pass(MINUTE);
        }
        assert_eq!(world.letters().len(), 10);
        ask(&world, ADDRESS).unwrap();
        assert_eq!(world.letters().len(), 10, "the day's twenty are used up by both purposes");
        assert!(!may_register());
        world.pass(Duration::from_secs(86_400));
        ask(&world, ADDRESS).unwrap();
        assert_eq!(world.letters().len(), 11);
    }

    #[test]
    fn both_identifiers_of_a_user_share_one_send() {
        let world = World::with_ada();
        ask(&world, ADDRESS).unwrap();
        ask(&world, NUMBER).unwrap();
        assert_eq!(world.letter_kinds(), ["password_reset"]);
    }

    #[test]
    fn what_could_not_be_written_may_be_asked_for_at_once() {
        let world = World::with_ada();
        let audited = world.audited();
        world.fail_commits(true);
        assert!(matches!(ask(&world, ADDRESS), Err(RequestResetError::Unavailable(_))));
        assert!(world.letters().is_empty());
        assert_eq!(world.audited(), audited);
        world.fail_commits(false);
        ask(&world, ADDRESS).unwrap();
        assert!(is_good(&world, &world.link()));
    }

    #[test]
    fn a_request_names_one_person() {
        let world = World::with_ada();
        world.calls();
        for (body, field) in [
            (json!({}), "email_or_phone"),
            (json!({ "email_or_phone": "" }), "email_or_phone"),
            (json!({ "email_or_phone": "ada@" }), "email_or_phone"),
            (json!({ "email": NUMBER }), "email"),
            (json!({ "phone": ADDRESS }), "phone"),
        ] {
            let refused = run(request_reset(&world, &caller(), request(body.clone())));
            let Err(RequestResetError::Invalid(errors)) = refused else { panic!("{body}") };
            assert!(errors.contains_key(field) || errors.contains_key("non_field_errors"), "{body} {errors:?}");
        }
        let both = run(request_reset(&world, &caller(), request(json!({ "email": ADDRESS, "phone": NUMBER }))));
        assert!(matches!(both, Err(RequestResetError::Invalid(_))));
        assert_eq!(world.calls(), Vec::<&str>::new());
    }
}
