//! Sets a new password with the token of a link or with a code (contract §2). It signs nobody in.

use garde::Validate;
use serde::Deserialize;

use super::{
    audit,
    codes::{self, Proof, Purpose},
    error::{Overloaded, Unavailable},
    fields::{
        Exact, FieldErrors, NON_FIELD, Text, at_most, field_error, nullable, present, required, required_password,
    },
    identifier::Identifier,
    judge_password::{JudgeError, judge_password},
    model::{Caller, User},
    new_password::{self, NewPasswordError, Occasion},
    passwords::Password,
    ports::{Audit as _, Ports, Users as _},
    problem::Problem,
    registration,
    request_reset::may_reset,
    reset_flow,
};

/// `POST /password/reset-confirm/`: `uidb64` and `token`, or `email_or_phone` and `otp`.
#[derive(Debug, Deserialize, Validate)]
pub struct ConfirmReset {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    uidb64: Option<Exact>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    token: Option<Exact>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(at_most::<254>))]
    email_or_phone: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(at_most::<32>))]
    otp: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    new_password: Option<Password>,
}

/// `POST /password/reset-confirm/{uidb64}/{token}/`
#[derive(Debug, Deserialize, Validate)]
pub struct ConfirmResetByLink {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    password: Option<Password>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    password2: Option<Password>,
}

/// `POST /password/reset-phone-confirm/`
#[derive(Debug, Deserialize, Validate)]
pub struct ConfirmResetByPhone {
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<254>))]
    phone: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required), custom(at_most::<32>))]
    otp: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    new_password: Option<Password>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    new_password_confirm: Option<Password>,
}

/// A reset, in whichever form it was asked for.
#[derive(Debug)]
pub struct Reset {
    by: By,
    password: Password,
    // The field that the password came in, for what is wrong with it.
    field: &'static str,
}

#[derive(Debug)]
enum By {
    Link { uidb64: String, token: String },
    Code { identifier: Identifier, otp: String },
}

impl ConfirmReset {
    /// Reads which of the two forms it is.
    ///
    /// # Errors
    /// Sentences when it is neither or both, or the identifier is malformed.
    pub fn read<P: Ports>(self, ports: &P) -> Result<Reset, ConfirmResetError> {
        let exact = |text: Option<Exact>| text.map(|text| text.0).filter(|text| !text.trim().is_empty());
        let text = |text: Option<Text>| text.map(|text| text.0).filter(|text| !text.is_empty());
        let missing = |field: &str| ConfirmResetError::Invalid(field_error(field, "This field is required."));
        let by = match (exact(self.uidb64), exact(self.token), text(self.email_or_phone), text(self.otp)) {
            (Some(uidb64), Some(token), None, None) => By::Link { uidb64, token },
            (None, None, Some(who), Some(otp)) => {
                let region = &ports.policy().default_region;
                let identifier = Identifier::email_or_phone(&who, region)
                    .map_err(|error| ConfirmResetError::Invalid(field_error("email_or_phone", error.to_string())))?;
                By::Code { identifier, otp }
            }
            (Some(_), None, None, None) => return Err(missing("token")),
            (None, Some(_), None, None) => return Err(missing("uidb64")),
            (None, None, Some(_), None) => return Err(missing("otp")),
            (None, None, None, Some(_)) => return Err(missing("email_or_phone")),
            _ => {
                let sentence = "Give either uidb64 and token, or email_or_phone and otp.";
                return Err(ConfirmResetError::Invalid(field_error(NON_FIELD, sentence)));
            }
        };
        Ok(Reset { by, password: self.new_password.unwrap_or_else(|| Password::new("")), field: "new_password" })
    }
}

impl ConfirmResetByLink {
    /// With what the path says.
    ///
    /// # Errors
    /// A sentence when the two passwords differ.
    pub fn read(self, uidb64: &str, token: &str) -> Result<Reset, ConfirmResetError> {
        let by = By::Link { uidb64: uidb64.to_owned(), token: token.to_owned() };
        let password = twice(self.password, self.password2, "password2")?;
        Ok(Reset { by, password, field: "password" })
    }
}

impl ConfirmResetByPhone {
    /// Reads the number.
    ///
    /// # Errors
    /// Sentences when it is malformed, or the two passwords differ.
    pub fn read<P: Ports>(self, ports: &P) -> Result<Reset, ConfirmResetError> {
        let typed = self.phone.map(|text| text.0).unwrap_or_default();
        let identifier = Identifier::phone(&typed, &ports.policy().default_region)
            .map_err(|error| ConfirmResetError::Invalid(field_error("phone", error.to_string())))?;
        let by = By::Code { identifier, otp: self.otp.map(|otp| otp.0).unwrap_or_default() };
        let password = twice(self.new_password, self.new_password_confirm, "new_password_confirm")?;
        Ok(Reset { by, password, field: "new_password" })
    }
}

fn twice(one: Option<Password>, again: Option<Password>, field: &str) -> Result<Password, ConfirmResetError> {
    match (one, again) {
        (Some(one), Some(again)) if one.expose() == again.expose() => Ok(one),
        _ => Err(ConfirmResetError::Invalid(field_error(field, "The two passwords do not match."))),
    }
}

/// Why there is no new password.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmResetError {
    /// Fields are missing or wrong, or the new password breaks rules.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// The link is of nobody, was used, ran out, or something changed since.
    #[error("the reset link is not valid")]
    InvalidToken,
    /// No such code: wrong, spent, run out, guessed at too often, or no such account.
    #[error("the code is wrong")]
    WrongCode,
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<JudgeError> for ConfirmResetError {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Overloaded(error) => Self::Overloaded(error),
            JudgeError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<ConfirmResetError> for Problem {
    fn from(error: ConfirmResetError) -> Self {
        match error {
            ConfirmResetError::Invalid(errors) => Self::invalid(errors),
            ConfirmResetError::InvalidToken => Self {
                errors: Some(field_error("token", "The link is not valid or has expired.")),
                ..Self::new(400, "invalid_token", "The link is not valid or has expired. Please ask for a new one.")
            },
            ConfirmResetError::WrongCode => Self {
                errors: Some(field_error("otp", "The code is wrong or has expired.")),
                ..Self::new(400, "invalid_otp", "The code is wrong or has expired.")
            },
            ConfirmResetError::Overloaded(error) => error.into(),
            ConfirmResetError::Unavailable(error) => error.into(),
        }
    }
}

/// Sets the password. What is wrong with it is told, and the link or code left unspent, only to who
/// has proven themselves: likeness to a person's own data is about that person.
///
/// # Errors
/// [`ConfirmResetError`].
pub async fn confirm_reset<P: Ports>(ports: &P, caller: &Caller, reset: Reset) -> Result<(), ConfirmResetError> {
    let Reset { by, password, field } = reset;
    // Never hashed, and nothing is looked up for it (ABUSE 35).
    if password.expose().chars().count() > ports.policy().passwords.max_length {
        let broken = judge_password(ports, &password, &[]).await?;
        return Err(ConfirmResetError::Invalid([(field.to_owned(), broken)].into()));
    }
    let (user, proof) = match &by {
        By::Link { uidb64, token } => prove_by_link(ports, uidb64, token).await?,
        By::Code { identifier, otp } => prove_by_code(ports, identifier, otp).await?,
    };
    let (Some(user), Some(proof)) = (&user, proof) else {
        return refuse(ports, caller, user.as_ref(), &by).await;
    };
    let personal = personal(user);
    let broken = judge_password(ports, &password, &personal).await?;
    if !broken.is_empty() {
        return Err(ConfirmResetError::Invalid([(field.to_owned(), broken)].into()));
    }
    let how = registration::hash_beside_waiting(ports, user).await?;
    let hash = ports.hash_password(password, how).await?;
    if !codes::spend(ports, &proof).await? {
        return refuse(ports, caller, Some(user), &by).await;
    }
    match new_password::set(ports, caller, user, &hash, Occasion::Reset).await {
        Ok(()) => Ok(()),
        Err(NewPasswordError::Changed) => {
            // Perhaps only rehashed by a sign-in; what else changed makes the proof worthless by itself.
            let _ = codes::give_back(ports, &proof).await;
            refuse(ports, caller, Some(user), &by).await
        }
        Err(NewPasswordError::Unavailable(error)) => {
            // Nothing was changed, so the person may try again; should this fail too, they ask anew.
            let _ = codes::give_back(ports, &proof).await;
            Err(error.into())
        }
    }
}

/// What is known of a person, for judging likeness.
pub fn personal(user: &User) -> Vec<&str> {
    let known = [user.email.as_deref(), user.phone.as_deref(), Some(&user.first_name), Some(&user.last_name)];
    known.into_iter().flatten().filter(|text| !text.is_empty()).collect()
}

type Proven = (Option<User>, Option<Proof>);

async fn prove_by_link<P: Ports>(ports: &P, uidb64: &str, token: &str) -> Result<Proven, Unavailable> {
    let Some(id) = reset_flow::read_uidb64(uidb64) else { return Ok((None, None)) };
    let user = ports.store().await?.user(id).await?.filter(may_reset);
    let nobody = User::new(id, String::new(), ports.now());
    let proof = reset_flow::check_token(ports, user.as_ref().unwrap_or(&nobody), token).await?;
    Ok((user, proof))
}

async fn prove_by_code<P: Ports>(ports: &P, identifier: &Identifier, otp: &str) -> Result<Proven, Unavailable> {
    let user = ports.user_of(identifier).await?.filter(may_reset);
    // For nobody the same calls are made, with an id that has no code.
    let nobody = User::new(ports.keys().stand_in(&identifier.comparable()), String::new(), ports.now());
    let asked = user.as_ref().unwrap_or(&nobody);
    let proof = codes::guess(ports, asked.id, Purpose::PasswordReset, &reset_flow::binding(asked), otp).await?;
    Ok((user, proof))
}

async fn refuse<P: Ports>(ports: &P, caller: &Caller, user: Option<&User>, by: &By) -> Result<(), ConfirmResetError> {
    let event = audit::event(ports, "password_reset", caller);
    let event = match by {
        By::Code { identifier, .. } => event.with_identifier(ports, identifier),
        By::Link { .. } => event,
    };
    let event = user.map(|user| event.clone().of_user(user.id)).unwrap_or(event);
    let (reason, error) = match by {
        By::Link { .. } => ("invalid_token", ConfirmResetError::InvalidToken),
        By::Code { .. } => ("invalid_otp", ConfirmResetError::WrongCode),
    };
    ports.store_to_write().await?.record(&event.refused(reason)).await?;
    Err(error)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc, time::Duration};

    use serde_json::{Value, json};

    use super::*;
    use crate::services::{
        login::{Login, login},
        memory::{ADDRESS, NUMBER, PASSWORD, World, caller, request},
        model::EndReason,
        ports::Ephemeral as _,
        request_reset::request_reset,
        run::run,
    };

    const NEW: &str = "silver-Meadow-58";
    const OTHER: &str = "orange-Lantern-41";
    const LIKE: &str = "Lovelace-99";

    type Link = (String, String);

    fn ask(world: &World, who: &str) {
        run(request_reset(world, &caller(), request(json!({ "email_or_phone": who })))).unwrap();
    }

    fn with_link() -> (World, Link) {
        let world = World::with_ada();
        ask(&world, ADDRESS);
        let link = world.link();
        (world, link)
    }

    fn with_code() -> (World, String) {
        let world = World::with_ada();
        ask(&world, NUMBER);
        let code = world.code();
        (world, code)
    }

    fn confirm(world: &World, body: Value) -> Result<(), ConfirmResetError> {
        run(confirm_reset(world, &caller(), request::<ConfirmReset>(body).read(world)?))
    }

    fn by_link(world: &World, (uidb64, token): &Link, password: &str) -> Result<(), ConfirmResetError> {
        confirm(world, json!({ "uidb64": uidb64, "token": token, "new_password": password }))
    }

    fn by_code(world: &World, who: &str, otp: &str, password: &str) -> Result<(), ConfirmResetError> {
        confirm(world, json!({ "email_or_phone": who, "otp": otp, "new_password": password }))
    }

    fn enters(world: &World, who: &str, password: &str) -> bool {
        let wanted = json!({ "email_or_phone": who, "password": password });
        run(login(world, &caller(), request::<Login>(wanted))).is_ok()
    }

    fn wrong(code: &str) -> String {
        format!("{:06}", (code.parse::<u32>().unwrap() + 1) % 1_000_000)
    }

    fn fields(refused: Result<(), ConfirmResetError>) -> FieldErrors {
        match refused {
            Err(ConfirmResetError::Invalid(errors)) => errors,
            other => panic!("{other:?}"),
        }
    }

    fn is_invalid_token(answer: &Result<(), ConfirmResetError>) -> bool {
        matches!(answer, Err(ConfirmResetError::InvalidToken))
    }

    fn is_wrong_code(answer: &Result<(), ConfirmResetError>) -> bool {
        matches!(answer, Err(ConfirmResetError::WrongCode))
    }

    #[test]
    fn a_link_sets_the_password_once_and_signs_nobody_in() {
        let (world, link) = with_link();
        by_link(&world, &link, NEW).unwrap();
        assert!(world.sessions().is_empty());
        assert!(is_invalid_token(&by_link(&world, &link, OTHER)));
        assert!(enters(&world, ADDRESS, NEW) && !enters(&world, ADDRESS, PASSWORD) && !enters(&world, ADDRESS, OTHER));
        assert!(world.audited().contains(&("password_reset", "")));
        assert!(world.audited().contains(&("password_reset", "invalid_token")));
    }

    #[test]
    fn a_code_sets_the_password_once() {
        let (world, code) = with_code();
        by_code(&world, "0803-123-4567", &code, NEW).unwrap();
        assert!(world.sessions().is_empty());
        assert!(is_wrong_code(&by_code(&world, NUMBER, &code, OTHER)));
        assert!(enters(&world, NUMBER, NEW) && !enters(&world, NUMBER, PASSWORD));
        assert!(world.audited().contains(&("password_reset", "invalid_otp")));
    }

    #[test]
    fn every_form_of_the_request_sets_the_password() {
        let (world, (uidb64, token)) = with_link();
        let twice =
            |one: &str, again: &str| request::<ConfirmResetByLink>(json!({ "password": one, "password2": again }));
        assert!(fields(twice(NEW, OTHER).read(&uidb64, &token).map(drop)).contains_key("password2"));
        let bad = twice("lovelace", "lovelace").read(&uidb64, &token).unwrap();
        assert!(fields(run(confirm_reset(&world, &caller(), bad))).contains_key("password"), "the field it came in");
        run(confirm_reset(&world, &caller(), twice(NEW, NEW).read(&uidb64, &token).unwrap())).unwrap();
        assert!(enters(&world, ADDRESS, NEW));

        let (world, code) = with_code();
        let form = |phone: &str, one: &str, again: &str| {
            let body = json!({ "phone": phone, "otp": code, "new_password": one, "new_password_confirm": again });
            request::<ConfirmResetByPhone>(body).read(&world)
        };
        assert!(fields(form(NUMBER, NEW, OTHER).map(drop)).contains_key("new_password_confirm"));
        assert!(fields(form("12", NEW, NEW).map(drop)).contains_key("phone"));
        assert!(fields(form(ADDRESS, NEW, NEW).map(drop)).contains_key("phone"), "an address is no number");
        run(confirm_reset(&world, &caller(), form("08031234567", NEW, NEW).unwrap())).unwrap();
        assert!(enters(&world, NUMBER, NEW));
    }

    #[test]
    fn what_is_missing_is_named() {
        let world = World::with_ada();
        world.calls();
        for (body, field) in [
            (json!({ "uidb64": "x", "new_password": NEW }), "token"),
            (json!({ "token": "x", "new_password": NEW }), "uidb64"),
            (json!({ "email_or_phone": ADDRESS, "new_password": NEW }), "otp"),
            (json!({ "otp": "123456", "new_password": NEW }), "email_or_phone"),
            (json!({ "email_or_phone": "ada@", "otp": "123456", "new_password": NEW }), "email_or_phone"),
            (json!({ "new_password": NEW }), NON_FIELD),
            (json!({ "uidb64": "x", "token": "y", "otp": "123456", "new_password": NEW }), NON_FIELD),
            (json!({ "uidb64": " ", "token": "", "email_or_phone": "", "otp": "", "new_password": NEW }), NON_FIELD),
        ] {
            assert!(fields(confirm(&world, body.clone())).contains_key(field), "{body}");
        }
        assert_eq!(world.calls(), Vec::<&str>::new());
    }

    #[test]
    fn every_session_ends_and_the_owner_is_told_at_every_address() {
        let (world, link) = with_link();
        let id = world.users()[0].id;
        let (other, ada) = (world.add("grace@example.org", None), [world.sign_in(id), world.sign_in(id)]);
        let grace = world.sign_in(other.id);
        by_link(&world, &link, NEW).unwrap();
        assert!(ada.iter().all(|signed_in| !world.is_alive(&signed_in.tokens)));
        assert!(world.is_alive(&grace.tokens));
        let reasons = world.sessions().iter().map(|session| session.end_reason).collect::<Vec<_>>();
        assert_eq!(reasons, [Some(EndReason::PasswordReset), Some(EndReason::PasswordReset), None]);
        assert_eq!(world.letter_kinds(), ["password_reset", "password_changed", "password_changed"]);
        let events = world.events();
        assert_eq!(events[events.len() - 3..], ["SessionEnded", "SessionEnded", "PasswordChanged"]);
        assert_eq!(world.audited().last(), Some(&("password_reset", "")));
    }

    #[test]
    fn a_lock_of_either_identifier_is_lifted() {
        let (world, link) = with_link();
        for who in [ADDRESS, NUMBER] {
            for _ in 0..5 {
                assert!(!enters(&world, who, OTHER));
            }
            assert!(!enters(&world, who, PASSWORD), "{who} is locked");
        }
        by_link(&world, &link, NEW).unwrap();
        for who in [ADDRESS, NUMBER] {
            for _ in 0..4 {
                assert!(!enters(&world, who, OTHER));
            }
            assert!(enters(&world, who, NEW), "{who} counts anew");
        }
    }

    #[test]
    fn a_commit_that_fails_gives_link_and_code_back() {
        let (world, link) = with_link();
        let signed_in = world.sign_in(world.users()[0].id);
        world.fail_commits(true);
        assert!(matches!(by_link(&world, &link, NEW), Err(ConfirmResetError::Unavailable(_))));
        world.fail_commits(false);
        assert!(world.is_alive(&signed_in.tokens) && enters(&world, ADDRESS, PASSWORD));
        assert_eq!(world.letter_kinds(), ["password_reset"]);
        by_link(&world, &link, NEW).unwrap();
        assert!(is_invalid_token(&by_link(&world, &link, OTHER)), "given back once");

        let (world, code) = with_code();
        world.fail_commits(true);
        assert!(matches!(by_code(&world, NUMBER, &code, NEW), Err(ConfirmResetError::Unavailable(_))));
        world.fail_commits(false);
        by_code(&world, NUMBER, &code, NEW).unwrap();
        assert!(enters(&world, NUMBER, NEW));
    }

    #[test]
    fn what_is_given_back_lives_no_longer_than_before() {
        let (world, link) = with_link();
        world.pass(Duration::from_secs(3000));
        world.fail_commits(true);
        assert!(by_link(&world, &link, NEW).is_err());
        world.fail_commits(false);
        world.pass(Duration::from_secs(600));
        assert!(is_invalid_token(&by_link(&world, &link, NEW)));
    }

    #[test]
    fn of_two_resets_side_by_side_with_one_link_one_succeeds() {
        let (world, link) = with_link();
        let inner = Rc::new(RefCell::new(None));
        let (beside, its_link, its_answer) = (world.clone(), link.clone(), Rc::clone(&inner));
        // It begins while the first has proven itself and makes its hash.
        world.on_next_hash(move || {
            its_answer.replace(Some(by_link(&beside, &its_link, OTHER)));
        });
        let outer = by_link(&world, &link, NEW);
        assert!(matches!(inner.take(), Some(Ok(()))));
        assert!(is_invalid_token(&outer));
        assert!(enters(&world, ADDRESS, OTHER) && !enters(&world, ADDRESS, NEW));
        assert_eq!(world.letter_kinds().iter().filter(|kind| **kind == "password_changed").count(), 2, "of one reset");
    }

    #[test]
    fn of_two_resets_side_by_side_with_one_code_one_succeeds() {
        let (world, code) = with_code();
        let (beside, its_code) = (world.clone(), code.clone());
        world.on_next_hash(move || by_code(&beside, NUMBER, &its_code, OTHER).unwrap());
        assert!(is_wrong_code(&by_code(&world, NUMBER, &code, NEW)));
        assert!(enters(&world, NUMBER, OTHER));
    }

    #[test]
    fn a_user_who_changed_meanwhile_is_not_overwritten() {
        type Change = fn(&mut User);
        let changes: [(Change, bool); 3] = [
            (|user| user.password_hash = Some("$another".into()), true),
            (|user| user.is_active = false, false),
            (|user| user.deleted_at = Some(time::OffsetDateTime::UNIX_EPOCH), false),
        ];
        for (change, is_rehash) in changes {
            let (world, link) = with_link();
            world.on_next_commit(change);
            assert!(is_invalid_token(&by_link(&world, &link, NEW)));
            let hash = world.users()[0].password_hash.clone();
            assert_eq!(world.users()[0].password_changed_at, None);
            let again = by_link(&world, &link, NEW);
            assert_eq!(again.is_ok(), is_rehash, "the link of a user who is the same otherwise is given back");
            assert_eq!(world.users()[0].password_hash == hash, !is_rehash);
            assert_eq!(world.letter_kinds().contains(&"password_changed"), is_rehash);
        }
    }

    #[test]
    fn what_is_wrong_with_a_password_is_told_only_to_who_has_proven_themselves() {
        let (world, (uidb64, token)) = with_link();
        world.calls();
        for password in [LIKE, "abc", "password"] {
            let hashes = world.hashes();
            assert!(is_invalid_token(&by_link(&world, &(uidb64.clone(), format!("{token}A")), password)));
            assert!(is_invalid_token(&by_link(
                &world,
                &(reset_flow::uidb64(world.users()[0].id), "A".into()),
                password
            )));
            for who in [ADDRESS, NUMBER, "nobody@example.org"] {
                assert!(is_wrong_code(&by_code(&world, who, "not-it", password)));
            }
            assert_eq!(world.hashes(), hashes);
        }
        let calls = world.calls();
        assert!(!calls.contains(&"weakness") && !calls.contains(&"hash_password"), "{calls:?}");
        // To who has, every rule is named, and the link is not spent.
        let errors = fields(by_link(&world, &(uidb64.clone(), token.clone()), LIKE));
        assert!(errors["new_password"].iter().any(|sentence| sentence.contains("similar")), "{errors:?}");
        assert!(!world.calls().contains(&"hash_password"));
        by_link(&world, &(uidb64, token), NEW).unwrap();

        let (world, code) = with_code();
        assert!(fields(by_code(&world, NUMBER, &code, LIKE)).contains_key("new_password"));
        by_code(&world, NUMBER, &code, NEW).unwrap();
    }

    #[test]
    fn a_password_that_is_too_long_costs_no_hash_and_no_look_up() {
        let (world, link) = with_link();
        let long = "x".repeat(129);
        let hashes = world.hashes();
        world.calls();
        for answer in [by_link(&world, &link, &long), by_code(&world, NUMBER, "123456", &long)] {
            assert_eq!(
                fields(answer)["new_password"],
                ["This password is too long. It must contain at most 128 characters."]
            );
        }
        assert_eq!(world.calls(), Vec::<&str>::new());
        assert_eq!(world.hashes(), hashes);
        let longest: String = (0..128_u32).filter_map(|n| char::from_u32(33 + n * 37 % 90)).collect();
        by_link(&world, &link, &longest).unwrap();
        assert!(enters(&world, ADDRESS, &longest));
    }

    #[test]
    fn a_link_and_a_code_are_dead_after_a_change_even_when_nothing_was_deleted() {
        type Change = fn(&mut User);
        let changes: [Change; 5] = [
            |user| user.password_changed_at = Some(time::OffsetDateTime::UNIX_EPOCH),
            |user| user.email = Some("ada@example.net".into()),
            |user| user.email = None,
            |user| user.phone = Some("+2348030000001".into()),
            |user| user.phone = None,
        ];
        for change in changes {
            let (world, link) = with_link();
            world.change_user(change);
            let key = format!("reset_flow:{}", world.users()[0].id);
            assert!(run(world.get(&key)).unwrap().is_some(), "nothing was deleted");
            assert!(is_invalid_token(&by_link(&world, &link, NEW)));

            let world = World::with_ada();
            ask(&world, NUMBER);
            world.change_user(change);
            let now = &world.users()[0];
            let who = now.phone.clone().or_else(|| now.email.clone()).unwrap();
            assert!(is_wrong_code(&by_code(&world, &who, &world.code(), NEW)));
        }
    }

    #[test]
    fn a_reset_voids_every_other_link_and_code() {
        let (world, link) = with_link();
        world.pass(Duration::from_secs(61));
        ask(&world, NUMBER);
        by_link(&world, &link, NEW).unwrap();
        assert!(is_wrong_code(&by_code(&world, NUMBER, &world.code(), OTHER)));
        let id = world.users()[0].id;
        for key in [format!("reset_flow:{id}"), format!("otp:{id}:password_reset")] {
            assert_eq!(run(world.get(&key)).unwrap(), None, "{key}");
        }
    }

    #[test]
    fn who_may_not_reset_cannot_confirm_either() {
        type Change = fn(&World);
        let changes: [Change; 3] = [
            |world| world.change_user(|user| user.is_verified = false),
            |world| world.change_user(|user| user.is_active = false),
            World::hide_user,
        ];
        for change in changes {
            let (world, link) = with_link();
            change(&world);
            assert!(is_invalid_token(&by_link(&world, &link, NEW)));
            let (world, code) = with_code();
            change(&world);
            assert!(is_wrong_code(&by_code(&world, NUMBER, &code, NEW)));
        }
    }

    #[test]
    fn a_link_runs_out_and_is_nobody_elses() {
        let (world, (uidb64, token)) = with_link();
        let grace = world.add("grace@example.org", None);
        assert!(is_invalid_token(&by_link(&world, &(reset_flow::uidb64(grace.id), token.clone()), NEW)));
        for uidb64 in ["", "x", "MQ", &uidb64.to_uppercase()] {
            assert!(by_link(&world, &(uidb64.to_owned(), token.clone()), NEW).is_err(), "{uidb64}");
        }
        world.pass(Duration::from_secs(3599));
        let world_now = world.now();
        assert!(fields(by_link(&world, &(uidb64.clone(), token.clone()), "abc")).contains_key("new_password"));
        world.pass(Duration::from_secs(1));
        assert!(world.now() > world_now && is_invalid_token(&by_link(&world, &(uidb64, token), NEW)));
    }

    #[test]
    fn five_wrong_guesses_spend_a_code_and_a_code_of_registration_resets_nothing() {
        let (world, code) = with_code();
        for _ in 0..5 {
            assert!(is_wrong_code(&by_code(&world, NUMBER, &wrong(&code), NEW)));
        }
        assert!(is_wrong_code(&by_code(&world, NUMBER, &code, NEW)));

        let world = World::with_ada();
        let code = run(codes::issue(&world, world.users()[0].id, Purpose::Registration, "")).unwrap();
        assert!(is_wrong_code(&by_code(&world, NUMBER, &code, NEW)));
    }

    #[test]
    fn a_wrong_code_costs_the_same_whoever_it_was_for() {
        let calls = |change: fn(&World), who: &str| {
            let world = World::with_ada();
            ask(&world, NUMBER);
            change(&world);
            world.calls();
            assert!(is_wrong_code(&by_code(&world, who, "not-it", NEW)));
            assert!(world.audited().ends_with(&[("password_reset", "invalid_otp")]));
            world.calls()
        };
        let known = calls(|_| (), NUMBER);
        assert_eq!(calls(|_| (), "+2348039999999"), known);
        assert_eq!(calls(|_| (), "nobody@example.org"), known);
        assert_eq!(calls(|world| world.change_user(|user| user.is_verified = false), NUMBER), known);
        assert_eq!(calls(|world| world.change_user(|user| user.is_active = false), NUMBER), known);
        assert_eq!(calls(World::hide_user, NUMBER), known);
    }

    #[test]
    fn a_store_that_fails_after_the_commit_undoes_nothing() {
        let (world, link) = with_link();
        let world_too = world.clone();
        // Spending the link is the last call that must succeed.
        world.on_next_commit(move |_| world_too.fail_store(true));
        by_link(&world, &link, NEW).unwrap();
        world.fail_store(false);
        assert!(enters(&world, ADDRESS, NEW) && !enters(&world, ADDRESS, PASSWORD));
    }
}
