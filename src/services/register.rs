//! Sign-up with an e-mail address or a phone number (contract §2, §4).
//!
//! The answer is the same whether the identifier is free, waits for its code, or has an account:
//! the code, or a notice to the owner, goes to the address itself. What was asked for waits under
//! a registration id that only the returned challenge names, so that whoever proves the address
//! gets the password that *they* chose, not that of somebody who registered it before or after
//! them (pre-hijacking, ABUSE 21).

use garde::Validate;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    audit,
    codes::{self, Purpose, SendTo, Stored},
    error::{Overloaded, Unavailable},
    events::Event,
    fields::{FieldErrors, NON_FIELD, Text, at_most, field_error, nullable, present, required_password},
    identifier::Identifier,
    judge_password::{JudgeError, judge_password},
    letters::Letter,
    model::{AuthProvider, Caller, OutboxEntry, Role, User, UserId},
    outbox,
    passwords::{self, HashAs, Password},
    ports::{Bundle, Claiming, First, Ports},
    problem::Problem,
    registration::{self, Pending},
};

/// `POST /auth/register/`
#[derive(Debug, Deserialize, Validate)]
pub struct Register {
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    email: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    phone: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    #[garde(custom(required_password))]
    password: Option<Password>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    password2: Option<Password>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(skip)]
    role: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(at_most::<150>))]
    first_name: Option<Text>,
    #[serde(default, deserialize_with = "nullable")]
    #[garde(custom(at_most::<150>))]
    last_name: Option<Text>,
}

/// Where the code went, and the challenge to answer with it.
#[derive(Debug, Serialize)]
pub struct Registered {
    /// Where the code went.
    pub verification: Verification,
    /// Stands for the account at verify-otp and resend-otp.
    pub challenge: String,
}

/// Where a code went.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// `email` or `sms`.
    pub channel: &'static str,
    /// The masked address or number.
    pub destination: String,
    /// Seconds.
    pub expires_in: u64,
}

/// Why nobody was registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Fields are missing or wrong.
    #[error("some fields are not valid")]
    Invalid(FieldErrors),
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<JudgeError> for RegisterError {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Overloaded(error) => Self::Overloaded(error),
            JudgeError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

impl From<RegisterError> for Problem {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Invalid(errors) => Self::invalid(errors),
            RegisterError::Overloaded(error) => error.into(),
            RegisterError::Unavailable(error) => error.into(),
        }
    }
}

/// Registers, or makes it look so.
///
/// # Errors
/// [`RegisterError`].
pub async fn register<P: Ports>(ports: &P, caller: &Caller, request: Register) -> Result<Registered, RegisterError> {
    let reveal = ports.policy().reveal_existing;
    let wanted = request.read(ports).await?;
    let mut known = ports.user_of(&wanted.identifier).await?;
    let mut is_hidden = false;
    // Whoever loses a race for the identifier finds the winner's account on the second turn.
    for _ in 0..3 {
        if known.is_some() && reveal {
            return Err(taken(&wanted.identifier));
        }
        match attempt(ports, caller, &wanted, known.as_ref(), is_hidden).await {
            Ok(registered) => return Ok(registered),
            Err(Undone::Taken) => {
                known = ports.user_of(&wanted.identifier).await?;
                // Taken by somebody whom no look-up shows: a deleted user.
                is_hidden = known.is_none();
            }
            Err(Undone::Overloaded(error)) => return Err(error.into()),
            Err(Undone::Unavailable(error)) => return Err(error.into()),
        }
    }
    Err(Unavailable::database("an account came and went three times").into())
}

async fn attempt<P: Ports>(
    ports: &P,
    caller: &Caller,
    wanted: &Wanted,
    known: Option<&User>,
    is_hidden: bool,
) -> Result<Registered, Undone> {
    let how = match known {
        // Like the account's own hash: a person who registers twice does not contest their own
        // account, and one digest at login tells both apart.
        Some(user) => match &user.password_hash {
            Some(hash) if passwords::is_own(hash) => HashAs::Like(hash.clone()),
            _ => HashAs::New(ports.random()),
        },
        None => HashAs::New(ports.random()),
    };
    let password_hash = ports.hash_password(wanted.password.clone(), how).await?;
    let now = ports.now();
    let fresh = new_user(ports, wanted, &password_hash, now);
    let is_free = known.is_none() && !is_hidden;
    let open_account = known.map_or(is_free.then_some(fresh.id), |user| waits_for_code(user).then_some(user.id));
    // Mail goes to the stored spelling, whatever was typed.
    let to = known.and_then(|user| stored_spelling(user, &wanted.identifier));
    let to = to.unwrap_or_else(|| wanted.identifier.clone());

    // Nobody's id stands in for an account that waits for no code: its challenge leads nowhere.
    let pending = Pending {
        user_id: open_account.unwrap_or(fresh.id),
        kind: to.kind().to_owned(),
        identifier: to.as_str().to_owned(),
        password_hash: password_hash.clone(),
        role: wanted.role,
        first_name: wanted.first_name.clone(),
        last_name: wanted.last_name.clone(),
    };
    let (registration, challenge) = registration::keep(ports, &pending);
    // A verified account's owner may have been the first themselves: that hash would be the account's
    // own, or of an older one's salt, and never tell the newcomer to verify.
    let keeps = |first: &str| match known {
        Some(user) if !waits_for_code(user) => passwords::is_beside(first, user.password_hash.as_deref()),
        Some(_) => true,
        None => !is_hidden || passwords::is_beside(first, None),
    };
    let waiting = registration::keep_waiting_hash(ports, &to, &password_hash, keeps).await?;
    let who = SendTo::Account(known.map_or(fresh.id, |user| user.id));
    // Each case makes a code and writes an entry to the outbox: time must not tell them apart.
    let draw = |user| codes::draw(ports, user, Purpose::Registration, "");
    let ((code, with), (_, without)) = (draw(pending.user_id), draw(ports.keys().stand_in(&challenge)));
    let stored = Stored { always: vec![registration, waiting], with, without };
    let claim = codes::claim_send(ports, &who, Purpose::Registration, stored);
    let code = code_letter(ports, &to, code);
    let withheld = outbox::event(ports, &Event::CodeWithheld { user_id: pending.user_id });
    let letter = match open_account {
        _ if is_hidden => withheld.clone(),
        Some(_) => code,
        None => notice(ports, &to),
    };

    let event = audit::event(ports, "register", caller).with_identifier(ports, &to);
    let (first, event, happened) = match known {
        None if is_hidden => (First::Nothing, event.refused("taken"), None),
        None => (First::SignUp(&fresh), event.of_user(fresh.id), Some(Event::UserRegistered { user_id: fresh.id })),
        Some(user) => {
            let is_contested = user.password_hash.as_deref() != Some(password_hash.as_str());
            // Changes nothing where the user is verified.
            let first = First::Renewal { user: user.id, is_contested, at: now };
            let event = event.of_user(user.id);
            let event = if waits_for_code(user) { event } else { event.refused("taken") };
            (first, event, Some(Event::RegistrationRepeated { user_id: user.id }))
        }
    };
    let happened = happened.map(|happened| outbox::event(ports, &happened));
    let entries_with = |letter| happened.iter().cloned().chain([letter]).collect::<Vec<_>>();
    let (with_letter, without) = (entries_with(letter), entries_with(withheld));
    let granted = Bundle { first, session: None, event: &event, entries: &with_letter };
    match ports.claim_and_write(&Claiming { claim: &claim, granted, withheld: (&event, &without) }).await? {
        true => Ok(answer(ports, &wanted.identifier, challenge)),
        false => Err(Undone::Taken),
    }
}

/// The user's own spelling of what was asked for.
pub fn stored_spelling(user: &User, asked: &Identifier) -> Option<Identifier> {
    match asked {
        Identifier::Email(_) => user.email.clone().map(Identifier::Email),
        Identifier::Phone(_) => user.phone.clone().map(Identifier::Phone),
    }
}

/// Every identifier of a user.
pub fn stored_identifiers(user: &User) -> Vec<Identifier> {
    let email = user.email.clone().map(Identifier::Email);
    email.into_iter().chain(user.phone.clone().map(Identifier::Phone)).collect()
}

/// A code for an account, in a letter that runs out with it.
pub fn code_letter<P: Ports>(ports: &P, identifier: &Identifier, code: String) -> OutboxEntry {
    let ttl = ports.policy().otp.ttl;
    let letter = Letter::VerificationCode { code, minutes: ttl.as_secs().div_ceil(60) };
    outbox::letter(ports, identifier, letter, Some(ports.now() + ttl))
}

/// Whether a code may still make this account a verified one.
pub fn waits_for_code(user: &User) -> bool {
    !user.is_verified && user.is_active
}

struct Wanted {
    identifier: Identifier,
    password: Password,
    role: Role,
    first_name: String,
    last_name: String,
}

impl Register {
    async fn read<P: Ports>(self, ports: &P) -> Result<Wanted, RegisterError> {
        let mut errors = FieldErrors::new();
        let mut refuse = |field: &str, sentence: String| errors.entry(field.to_owned()).or_default().push(sentence);
        let given = |text: Option<Text>| text.map(|text| text.0).filter(|text| !text.is_empty());
        let region = &ports.policy().default_region;

        let identifier = match (given(self.email), given(self.phone)) {
            (Some(email), None) => Identifier::email(&email).map_err(|error| refuse("email", error.to_string())).ok(),
            (None, Some(phone)) => {
                Identifier::phone(&phone, region).map_err(|error| refuse("phone", error.to_string())).ok()
            }
            (Some(_), Some(_)) => {
                refuse(NON_FIELD, "Give either an email address or a phone number, not both.".to_owned());
                None
            }
            (None, None) => {
                refuse(NON_FIELD, "An email address or a phone number is required.".to_owned());
                None
            }
        };
        let role = match given(self.role).as_deref() {
            None | Some("client") => Role::Client,
            Some("vendor") => Role::Vendor,
            Some(_) => {
                refuse("role", "Choose `client` or `vendor`.".to_owned());
                Role::Client
            }
        };
        let first_name = given(self.first_name).unwrap_or_default();
        let last_name = given(self.last_name).unwrap_or_default();
        let password = self.password.unwrap_or_else(|| Password::new(""));
        let mut personal = vec![first_name.as_str(), last_name.as_str()];
        personal.extend(identifier.as_ref().map(Identifier::as_str));
        // Before anything is looked up: no hash would hide how long the look-up took, and so whether there is an account.
        for sentence in judge_password(ports, &password, &personal).await? {
            refuse("password", sentence);
        }
        if self.password2.is_some_and(|again| again.expose() != password.expose()) {
            refuse("password2", "The two passwords do not match.".to_owned());
        }
        match identifier {
            Some(identifier) if errors.is_empty() => Ok(Wanted { identifier, password, role, first_name, last_name }),
            _ => Err(RegisterError::Invalid(errors)),
        }
    }
}

enum Undone {
    Taken,
    Overloaded(Overloaded),
    Unavailable(Unavailable),
}

impl From<Unavailable> for Undone {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl From<Overloaded> for Undone {
    fn from(error: Overloaded) -> Self {
        Self::Overloaded(error)
    }
}

fn new_user<P: Ports>(ports: &P, wanted: &Wanted, password_hash: &str, now: OffsetDateTime) -> User {
    let (email, phone, auth_provider) = match &wanted.identifier {
        Identifier::Email(address) => (Some(address.clone()), None, AuthProvider::Email),
        Identifier::Phone(number) => (None, Some(number.clone()), AuthProvider::Phone),
    };
    User {
        email,
        phone,
        password_hash: Some(password_hash.to_owned()),
        role: wanted.role,
        auth_provider,
        first_name: wanted.first_name.clone(),
        last_name: wanted.last_name.clone(),
        ..User::new(UserId(ports.new_id()), public_id(ports), now)
    }
}

/// Ten lower-case letters. Of 256 byte values, 26 × 9 are used, so that every letter is equally
/// likely.
pub fn public_id<P: Ports>(ports: &P) -> String {
    let mut pid = String::with_capacity(10);
    while pid.len() < 10 {
        let drawn = ports.random::<32>().into_iter().filter(|byte| *byte < 234);
        pid.extend(drawn.map(|byte| char::from(b'a' + byte % 26)).take(10 - pid.len()));
    }
    pid
}

fn notice<P: Ports>(ports: &P, identifier: &Identifier) -> OutboxEntry {
    let (base, links) = (&ports.policy().public_url, &ports.policy().links);
    let sign_in_url = format!("{base}{}", links.sign_in);
    let letter = Letter::AlreadyRegistered { sign_in_url, reset_url: format!("{base}{}", links.password_forgotten) };
    outbox::letter(ports, identifier, letter, None)
}

fn answer<P: Ports>(ports: &P, identifier: &Identifier, challenge: String) -> Registered {
    let channel = match identifier {
        Identifier::Email(_) => "email",
        Identifier::Phone(_) => "sms",
    };
    let expires_in = ports.policy().otp.ttl.as_secs();
    Registered { verification: Verification { channel, destination: identifier.masked(), expires_in }, challenge }
}

fn taken(identifier: &Identifier) -> RegisterError {
    let kind = if identifier.kind() == "email" { "email address" } else { "phone number" };
    RegisterError::Invalid(field_error(identifier.kind(), format!("A user with this {kind} already exists.")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::services::{
        confirm_reset::{ConfirmReset, confirm_reset},
        login::{Login, login},
        memory::{World, caller, request},
        registration::REGISTRATION_TTL,
        request_reset::{RequestReset, request_reset},
        run::run,
        second_factor::Entered,
        verify_otp::{VerifyOtp, VerifyOtpError, verify_otp},
    };

    fn sign_up(world: &World, password: &str) -> Registered {
        let wanted = json!({ "email": "ada@example.org", "password": password });
        run(register(world, &caller(), request(wanted))).unwrap()
    }

    fn prove(world: &World, with: serde_json::Value) -> Result<super::super::session::SignedIn, VerifyOtpError> {
        run(verify_otp(world, &caller(), request::<VerifyOtp>(with))).map(Entered::signed_in)
    }

    fn enters(world: &World, password: &str) -> bool {
        let wanted = json!({ "email_or_phone": "ada@example.org", "password": password });
        run(login(world, &caller(), request::<Login>(wanted))).is_ok()
    }

    const MINE: &str = "violet-Kettle-93";
    const THEIRS: &str = "hidden-Orbit-17-x";

    #[test]
    fn a_code_makes_an_account_of_a_registration() {
        let world = World::new();
        let registered = sign_up(&world, MINE);
        assert_eq!(registered.verification.destination, "a***@example.org");
        assert!(!enters(&world, MINE));
        prove(&world, json!({ "challenge": registered.challenge, "otp": world.code() })).unwrap();
        assert!(enters(&world, MINE));
        assert_eq!(world.events()[..3], ["UserRegistered", "UserVerified", "SessionStarted"]);
    }

    #[test]
    fn what_is_not_valid_is_refused_before_anything_is_looked_up() {
        let world = World::with_ada();
        world.calls();
        for password in ["abc", "password", "aaaaaaaaaaaaa1"] {
            let wanted = json!({ "email": "ada@example.org", "password": password });
            let refused = run(register(&world, &caller(), request(wanted)));
            assert!(matches!(refused, Err(RegisterError::Invalid(_))), "{password}");
        }
        assert_eq!(world.calls(), ["weakness"; 3]);
    }

    #[test]
    fn whoever_proves_the_address_gets_the_password_they_chose() {
        for mine_first in [true, false] {
            let world = World::new();
            let mut challenges = [MINE, THEIRS].map(|_| String::new());
            let order = if mine_first { [(0, MINE), (1, THEIRS)] } else { [(1, THEIRS), (0, MINE)] };
            for (place, password) in order {
                challenges[place] = sign_up(&world, password).challenge;
            }
            prove(&world, json!({ "challenge": challenges[0], "otp": world.code() })).unwrap();
            assert!(enters(&world, MINE) && !enters(&world, THEIRS), "mine first: {mine_first}");
        }
    }

    #[test]
    fn a_code_without_its_challenge_trusts_no_contested_password() {
        let world = World::new();
        sign_up(&world, THEIRS);
        sign_up(&world, MINE);
        prove(&world, json!({ "email": "ada@example.org", "otp": world.code() })).unwrap();
        assert!(!enters(&world, MINE) && !enters(&world, THEIRS));
        assert_eq!(world.letters().last().unwrap().letter.kind(), "password_removed");
    }

    #[test]
    fn registering_twice_with_one_password_contests_nothing() {
        let world = World::new();
        sign_up(&world, MINE);
        sign_up(&world, MINE);
        prove(&world, json!({ "email": "ada@example.org", "otp": world.code() })).unwrap();
        assert!(enters(&world, MINE));
    }

    #[test]
    fn an_account_is_not_told_and_not_touched() {
        let world = World::new();
        let first = sign_up(&world, MINE);
        prove(&world, json!({ "challenge": first.challenge, "otp": world.code() })).unwrap();
        world.pass(std::time::Duration::from_secs(61));
        let hashes = world.hashes();
        let second = sign_up(&world, THEIRS);
        assert_eq!(world.hashes(), hashes + 1);
        assert_eq!(second.challenge.len(), first.challenge.len());
        assert_eq!(world.letters().last().unwrap().letter.kind(), "already_registered");
        assert!(prove(&world, json!({ "challenge": second.challenge, "otp": "123456" })).is_err());
        assert!(enters(&world, MINE) && !enters(&world, THEIRS));
    }

    #[test]
    fn what_fails_half_way_leaves_no_trace() {
        let world = World::new();
        world.break_outbox();
        let wanted = json!({ "email": "ada@example.org", "password": MINE });
        let failed = run(register(&world, &caller(), request(wanted)));
        assert!(matches!(failed, Err(RegisterError::Unavailable(_))));
        assert!(world.users().is_empty() && world.audited().is_empty());
    }

    #[test]
    fn a_commit_that_fails_gives_the_code_back() {
        let world = World::new();
        let challenge = sign_up(&world, MINE).challenge;
        let with = json!({ "challenge": challenge, "otp": world.code() });
        world.fail_commits(true);
        assert!(matches!(prove(&world, with.clone()), Err(VerifyOtpError::Unavailable(_))));
        world.fail_commits(false);
        assert!(prove(&world, with).is_ok());
    }

    #[test]
    fn signing_in_tells_nobody_whether_the_address_was_free() {
        let taken = World::new();
        let mine = sign_up(&taken, MINE);
        prove(&taken, json!({ "challenge": mine.challenge, "otp": taken.code() })).unwrap();
        let free = World::new();
        for world in [&taken, &free] {
            sign_up(world, THEIRS);
            sign_up(world, "silver-Meadow-58");
            let login_with = |password: &str| {
                let wanted = json!({ "email_or_phone": "ada@example.org", "password": password });
                run(login(world, &caller(), request::<Login>(wanted))).err().map(|error| Problem::from(error).code)
            };
            assert_eq!(login_with(THEIRS), Some("account_not_verified"));
            assert_eq!(login_with("silver-Meadow-58"), Some("invalid_credentials"));
            assert_eq!(login_with("another-Kettle-1"), Some("invalid_credentials"));
        }
        assert!(enters(&taken, MINE));
    }

    // A new salt of the account's must not lose the waiting hash: on a free address it would go on working.
    #[test]
    fn signing_in_tells_no_more_once_the_account_has_another_password_or_salt() {
        let login_with = |world: &World, password: &str| {
            let wanted = json!({ "email_or_phone": "ada@example.org", "password": password });
            run(login(world, &caller(), request::<Login>(wanted))).err().map(|error| Problem::from(error).code)
        };
        let world = World::new();
        let mine = sign_up(&world, MINE);
        prove(&world, json!({ "challenge": mine.challenge, "otp": world.code() })).unwrap();
        sign_up(&world, THEIRS);
        let wanted = json!({ "email_or_phone": "ada@example.org" });
        run(request_reset(&world, &caller(), request::<RequestReset>(wanted))).unwrap();
        let (uidb64, token) = world.link();
        let new = "copper-Lantern-57-quartz";
        let wanted = json!({ "uidb64": uidb64, "token": token, "new_password": new });
        let reset = request::<ConfirmReset>(wanted).read(&world).unwrap();
        run(confirm_reset(&world, &caller(), reset)).unwrap();
        assert_eq!(login_with(&world, THEIRS), Some("account_not_verified"));
        assert_eq!(login_with(&world, MINE), Some("invalid_credentials"));
        assert_eq!(login_with(&world, new), None);

        // Made by Django 1.11, of `correct horse battery`.
        const IMPORTED: &str = "pbkdf2_sha1$1$BuF1JYLlqHJg$cWdADCQK3QzciYAJpbJaNi4pShM=";
        let world = World::new();
        let mine = sign_up(&world, MINE);
        prove(&world, json!({ "challenge": mine.challenge, "otp": world.code() })).unwrap();
        world.change_user(|user| user.password_hash = Some(IMPORTED.to_owned()));
        world.pass(REGISTRATION_TTL);
        sign_up(&world, THEIRS);
        assert_eq!(login_with(&world, THEIRS), Some("account_not_verified"));
        assert_eq!(login_with(&world, "correct horse battery"), None);
        assert!(world.users()[0].password_hash.as_deref().unwrap().starts_with("$argon2id$"));
        assert_eq!(login_with(&world, THEIRS), Some("account_not_verified"));
        assert_eq!(login_with(&world, "correct horse battery"), None);
        assert_eq!(login_with(&world, MINE), Some("invalid_credentials"));
    }

    #[test]
    fn mail_goes_to_the_stored_spelling_only() {
        let world = World::new();
        sign_up(&world, MINE);
        world.pass(std::time::Duration::from_secs(61));
        let wanted = json!({ "email": "ADA@example.org", "password": THEIRS });
        run(register(&world, &caller(), request(wanted))).unwrap();
        let to = world.letters().into_iter().map(|message| message.to);
        assert!(to.into_iter().all(|to| to == super::super::letters::Recipient::Email("ada@example.org".into())));
        assert_eq!(world.letters().len(), 2);
    }

    #[test]
    fn a_deleted_users_address_answers_alike_and_writes_no_letter() {
        let world = World::new();
        sign_up(&world, MINE);
        world.hide_user();
        let letters = world.letters().len();
        sign_up(&world, THEIRS);
        assert_eq!((world.letters().len(), world.audited().last().copied()), (letters, Some(("register", "taken"))));
    }

    #[test]
    fn signing_in_tells_nobody_about_a_deleted_user_either() {
        let world = World::new();
        sign_up(&world, MINE);
        world.hide_user();
        world.pass(REGISTRATION_TTL);
        sign_up(&world, THEIRS);
        let wanted = json!({ "email_or_phone": "ada@example.org", "password": THEIRS });
        let refused = run(login(&world, &caller(), request::<Login>(wanted))).err().unwrap();
        assert_eq!(Problem::from(refused).code, "account_not_verified");
    }

    #[test]
    fn a_registration_renewed_and_one_that_is_over_answer_alike_whether_the_address_was_free() {
        let hour = std::time::Duration::from_secs(3600);
        let taken = World::new();
        let mine = sign_up(&taken, MINE);
        prove(&taken, json!({ "challenge": mine.challenge, "otp": taken.code() })).unwrap();
        taken.pass(REGISTRATION_TTL);
        for world in [&taken, &World::new()] {
            let code = || {
                let wanted = json!({ "email_or_phone": "ada@example.org", "password": THEIRS });
                run(login(world, &caller(), request::<Login>(wanted))).err().map(|error| Problem::from(error).code)
            };
            sign_up(world, THEIRS);
            world.pass(23 * hour);
            sign_up(world, "silver-Meadow-58");
            world.pass(23 * hour);
            assert_eq!(code(), Some("account_not_verified"));
            world.pass(2 * hour);
            assert_eq!(code(), Some("invalid_credentials"));
        }
    }
}
