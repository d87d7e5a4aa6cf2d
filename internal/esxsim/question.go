package esxsim

import (
	"context"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// question is what a starting VM asks and waits for.
type question struct {
	info   types.VirtualMachineQuestionInfo
	answer chan string
}

// The answers to "moved or copied?" [field].
const (
	answerCancel = "0"
	answerMoved  = "1"
	answerCopied = "2"
)

// ask asks whether a VM was moved or copied, when its .vmx has another
// uuid.location than its place and no uuid.action [KB 1541]. The task that
// starts it waits.
func (s *Sim) ask(ctx context.Context, v *vm) types.BaseMethodFault {
	s.mu.Lock()
	if !v.askMoved {
		s.mu.Unlock()
		return nil
	}
	choice := func(key, label string) types.BaseElementDescription {
		return &types.ElementDescription{Description: types.Description{Label: label, Summary: label}, Key: key}
	}
	q := &question{answer: make(chan string, 1)}
	q.info = types.VirtualMachineQuestionInfo{
		Id:   itoa(int(s.taskNumber.Add(1))),
		Text: "msg.uuid.altered:This virtual machine might have been moved or copied.",
		Choice: types.ChoiceOption{
			ChoiceInfo:   []types.BaseElementDescription{choice(answerCancel, "Cancel"), choice(answerMoved, "I _Moved It"), choice(answerCopied, "I _Copied It")},
			DefaultIndex: 2,
		},
		Message: []types.VirtualMachineMessage{{Id: "msg.uuid.altered", Text: "This virtual machine might have been moved or copied."}},
	}
	v.question = q
	s.publish(v)
	s.mu.Unlock()
	var answer string
	select {
	case answer = <-q.answer:
	case <-ctx.Done():
		answer = answerCancel
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.question = nil
	if answer == answerCopied {
		v.uuid = randomUUID()
	}
	s.publish(v)
	if answer == answerCancel {
		v.starting = false
		return said(&types.GenericVmConfigFault{Reason: "the operation was cancelled"}, "msg.uuid.cancel", "The operation was cancelled by the user.")
	}
	v.askMoved = false
	return nil
}

// AnswerVM [API].
func (d *vmCalls) AnswerVM(_ *simulator.Context, req *types.AnswerVM) soap.HasFault {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	v := d.s.vms[req.This]
	if v == nil || v.question == nil || v.question.info.Id != req.QuestionId ||
		!slices.Contains([]string{answerCancel, answerMoved, answerCopied}, req.AnswerChoice) {
		return &methods.AnswerVMBody{Fault_: fault(&types.InvalidArgument{InvalidProperty: "questionId"}, "")}
	}
	select {
	case v.question.answer <- req.AnswerChoice:
	default: // answered already
	}
	return &methods.AnswerVMBody{Res: &types.AnswerVMResponse{}}
}
